"""`make site`: the course as a static site, with what the solved notebooks really printed.

solutions/*.ipynb ──▶ run (real engines) ──▶ store (kept by digest) ──▶ pages ──▶ Sphinx ──▶ links
"""
