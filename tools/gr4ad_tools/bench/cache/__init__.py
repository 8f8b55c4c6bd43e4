"""`gr4ad bench cache`: what the result cache of a running generator answers, and what that gains, on real sessions."""
