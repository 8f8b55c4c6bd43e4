"""The page that shows what a codebook makes of a catalogue."""
