"""ELEVATER: twenty image sets, knowledge in prompts, automatic tuning, and the leaderboard's submission files.

Source: Li et al. 2022, ELEVATER; the released toolkit (Elevater_Toolkit_IC 00d0af7) where the paper is silent. Where the
released code does what a result must not rest on, there are two modes by name: "faithful" does as it does, "honest" does not.
"""
