"""What a run is made of, stage by stage, and what is made of many runs.

one run      checks -> setting (models, corpora, controls; corpora, in_memory) -> hooklearn.experiment
             shared (models and texts, measured once), attacking (every arm under every attack), following
many runs    sweep_config -> sweeping, controls (measured once for all), fanout (over a cluster)
audits       auditing (two models made elsewhere), calibration and calibration_instilled (truth known)
"""
