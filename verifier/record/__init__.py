"""Records: of every refuted leaf what a program needs to refute it again, and that program."""
