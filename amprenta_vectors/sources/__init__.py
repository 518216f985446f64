"""Where vectors and texts are read from: one file a source, behind `protocol.Source`."""
