"""Controllers whose modules are on no Go proxy that was reached here: a variable names a folder with the program."""
