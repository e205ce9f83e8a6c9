"""The proof, and the lab it stands on."""
