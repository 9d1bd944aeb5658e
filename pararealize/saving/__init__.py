"""A converted network -> one folder that another machine can read, and what stands in it.

``network.save(folder)`` writes it, :func:`pararealize.load` reads it. The files, in reading order:

    network_folder   a network -> its folder, whole or not there; a folder -> its files, each compared with its digest
    save_arguments   what is given beside the folder -> errors before anything is written
    network_record   what ``network.json`` says: how the network was made, its modes, versions
    model_source     how the original is built: a registry's name, a file's digest, or by the user
    meta_model       a model on the meta device -> the same with memory, for a folder's weights
    plain_attributes  tensors that modules hold as plain attributes, by name, and back into a model
    example_form     example inputs -> their form as plain data; and back, without the user's values
"""

from .model_source import ModelSource
from .network_folder import SavedNetwork, read_folder, save_model
from .network_record import NetworkRecord

__all__ = ["ModelSource", "NetworkRecord", "SavedNetwork", "read_folder", "save_model"]
