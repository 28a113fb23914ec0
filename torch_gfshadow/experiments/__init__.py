"""The paper's figures as library calls, shared by the command line and the examples."""
