"""Parameters and statistics from and to other libraries, none of which is imported: one file each."""
