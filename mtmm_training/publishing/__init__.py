"""From a finished run to the Hub, or to a file that runs without this package."""
