"""What each stage of the laboratory does, in a plain process."""
