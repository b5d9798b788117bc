"""`make doctor`: this machine's abilities for each lab, and the fix of the rest. Standard library only.

`facts` asks the machine once, through `machine_probe`. `diagnoses` has a check for each subject, which reads
the facts and asks nothing. `doctor_report` writes the page.
"""
