"""The parts that are particular to one system; its moves are compositions of ordinary ones."""
