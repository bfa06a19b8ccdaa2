"""The settings of the stages that make training data of clips; hpc.curate.settings says what class variables mean."""
