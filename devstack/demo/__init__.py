"""`bin/demo`: uses the project as its users do, shows what happens, and checks it."""
