"""What every room may stand on: files that are written whole or not at all, and arguments that are checked.

Files, archives, checkpoints and the ledger of a run; the checks of a public function's arguments (`checks`) and of what
a user's function returned (`returned`). Imports nothing of this package, and must not know networks, masks or training.
"""
