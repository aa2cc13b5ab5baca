"""Where the servers of an upstream are: static, a file, DNS, AWS Cloud Map."""
