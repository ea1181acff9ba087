"""What crosses a border between compiler, agent and hub: structs, codecs and exact counting.

Import the module by its noun: `manifest`, `baseline`, `report`, `birth`, `desired`, `event`, `topics`, `binning`,
`errors`. Every decoder raises `ContractError` and nothing else.
"""
