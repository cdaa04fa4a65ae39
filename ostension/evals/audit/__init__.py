"""The class-design audit: which class names are ambiguous, close, threshold-sensitive or group-dependent, before deployment."""
