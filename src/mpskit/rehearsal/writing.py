"""placeholder"""
from mpskit.dispatch.patches import Patches
class Aside:
    def __init__(self, findings): pass
    def install(self, patches): pass
