"""What a person may set: the site's and the federation's files."""
