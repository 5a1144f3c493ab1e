"""How far two files of the same sequences are apart: vectors, their neighbours, prediction tables.

Everything is joined by id and read a block at a time; neither file is ever held in memory.
"""
