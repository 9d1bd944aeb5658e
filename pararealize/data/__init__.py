"""Data sets by name -> the batches of any epoch, from any place in it, for any rank.

``load("cifar10")`` gives a :class:`Dataset`, ``names()`` what there is. The files, in reading order:

    catalogue      a name -> a data set
    dataset        samples in a training and a test part -> batches
    augmentation   images and random draws -> random crops and mirror images
    images         images as bytes -> another size, number or kind of colours
    archives       files of CIFAR and SVHN -> images and labels
    idx_files      files of MNIST and Fashion-MNIST -> images and labels
    own_batches    a callable of the user's -> batches for the commands
    image_folder   a folder of image files -> images that are read when a batch wants them
    peaks          a count -> points of the plane and their classes
    glyphs         masks of characters -> images of letters and digits in clutter
    typefaces      the fonts of this machine -> masks of characters
    cache          tensors -> a file, and back
"""

from .augmentation import Augmentation
from .catalogue import digits, load, names
from .dataset import Dataset
from .own_batches import OwnBatches, own_data

__all__ = ["Augmentation", "Dataset", "OwnBatches", "digits", "load", "names", "own_data"]
