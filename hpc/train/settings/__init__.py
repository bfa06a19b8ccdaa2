"""The settings of the trainers; hpc.curate.settings says what the class variables mean."""
