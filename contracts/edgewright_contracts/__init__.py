"""What crosses a border between compiler, agent and hub: structs, codecs and exact counting.

Import the module by its noun: `manifest`, `baseline`, `report`, `birth`, `desired`, `event`, `topics`, `binning`,
`errors`. Every decoder raises `ContractError` and nothing else.
"""

__version__ = "0.1.0"  # of all packages of this project; asking `importlib.metadata` for it would cost a device 0.9 MB
