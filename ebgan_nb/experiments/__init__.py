"Experiments of the course, run from a checkout: they are no part of the installed package"
