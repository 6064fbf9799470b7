# %% [markdown] lang="en"
# # 16
