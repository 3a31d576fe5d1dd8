"""Stands in for pyACL, a part of the CANN toolkit that no package index has."""
