"""An agent fabric for the Model Context Protocol, on Trio."""
