"""What every stage stands on: files, run directories, the console, pages."""
