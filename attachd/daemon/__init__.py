"""The running attachd, and the only place that names concrete classes.

service   builds the parts from the config, owns their tasks, ends in two phases
parts     one concrete part at a time, for the service and for the commands
"""
