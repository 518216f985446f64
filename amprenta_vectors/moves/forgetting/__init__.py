"""Takes a person's rows out of everything that is kept here, and says where else they may be."""
