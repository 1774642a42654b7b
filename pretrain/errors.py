"""The one exception for what a user can put right."""


class UserError(Exception):
    """Something the user can put right: what is wrong, where (file, key), and what to do.

    Command lines print its message without a traceback and exit with code 2, which never asks a scheduler to requeue.
    """
