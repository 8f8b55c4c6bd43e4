"""`gr4ad bench decode`: the decode engine, what each of its parts is worth, and what decoders without them cost."""
