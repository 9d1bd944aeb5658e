"""Random programs with random effects, converted and compared with themselves: right, refused, wrong or another error.

effects     what a forward may do besides computing: a table of fragments of source code
programs    a seed -> one network with such effects, as a program that can be printed and run alone
oracle      a program -> its outcome, by the original model alone
tables      outcomes -> counts by outcome, as a table
"""
