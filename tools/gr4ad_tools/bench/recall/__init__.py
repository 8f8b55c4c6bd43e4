"""`gr4ad bench recall`: whether the decode engine's fast paths cost a trained policy any quality.

One policy is trained. Then each path answers the same users, whose last ad neither the codebook nor the policy has
seen: the engine in every type that a generator may compute in, and a search without any of the engine's tricks.
"""
