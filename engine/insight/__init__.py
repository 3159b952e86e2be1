"""What the deformable layers of a detector do and learned: as numbers, and as pictures."""
