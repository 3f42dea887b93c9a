"""Statistics over stored records; nothing here prints, and nothing imports torch."""
