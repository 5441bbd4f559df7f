"""The example data of the demo, and the program that writes the requests. README.md says what each file is."""
