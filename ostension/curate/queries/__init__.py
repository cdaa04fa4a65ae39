"""Query lists: what captions are matched against, built from any corpus as the paper built its 500,000."""

from __future__ import annotations

from ostension.curate.queries.listing import Queries, read_queries

__all__ = ["Queries", "read_queries"]
