"""One module per outside system: time-outs always, the database never."""
