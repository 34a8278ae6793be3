# %% [markdown]
# # Meaning and steering
#
# What a feature fires on, what it writes, and whether it does what its label says: three questions, on the bundled
# model, its SAE and its atlas.

# %%
import gemscope as gs
from gemscope.atlas.bundled import BUNDLED

model, sae = gs.load_model("smollm2"), gs.load_sae("smollm2")
atlas = gs.Atlas(BUNDLED)
print(atlas)

# %% [markdown]
# ## Finding one
#
# By what labels say, by a token on which features fire, or by a text about which they say most.

# %%
for one in atlas.search("money", limit=5):
    print(f"{one.feature:5}  {one.density:7.3%}  {one.meaning}")

# %%
gs.look(model, sae, "The bank raised its interest rates, and the loan became too expensive.", k=2)

# %% [markdown]
# ## Its page
#
# Where it fires most and least, how strongly, what it promotes, what is like it, and how well its label predicts
# where it fires in text that the label was not made from.

# %%
money = 8029
atlas[money]

# %% [markdown]
# ## What it writes
#
# The direct path, decoder times unembedding, is noise in the middle of a model. The effect is the mean Jacobian from
# the site to the logits, over text ([how](effect.md)).

# %%
exact = gs.load_model("smollm2", dtype="float32")
print(gs.effects(exact, sae, gs.Corpus.sample(), [money], tokens=64))

# %% [markdown]
# ## Turning it up
#
# Half of the median norm at the site is added along the feature's direction on every token. Both texts are written
# with the same dice, so what differs comes from the edit; each token is marked by how much likelier the edit made it.

# %%
units = gs.Units.measured(model, sae, gs.Corpus.sample(), tokens=2_000)
up = gs.Steer(sae, money, units.norm(money, 0.5))
print(up)
gs.steer(model, "My friend told me that", [up], n=2, max_new_tokens=24)

# %% [markdown]
# ## Is it the feature, or any push?
#
# Text that changed proves nothing: any push of this length changes text. A feature drawn at random, pushed as hard:

# %%
other = gs.Steer(sae, 3252, units.norm(3252, 0.5))
gs.steer(model, "My friend told me that", [other], n=2, max_new_tokens=24, control="another feature, pushed as hard")

# %% [markdown]
# And how much of a push it takes: the logit of ` money` after the prompt, against the strength, beside that other
# feature.

# %%
from gemscope.reports.dosing import dose

(target,) = model.tokenizer(" money", add_special_tokens=False)["input_ids"]
strengths = [0.0, 0.25, 0.5, 0.75, 1.0]
dose(
    model,
    "My friend told me that",
    lambda share: [gs.Steer(sae, money, units.norm(money, share))],
    strengths,
    target=target,
    n=2,
    max_new_tokens=16,
    control=lambda share: [gs.Steer(sae, 3252, units.norm(3252, share))],
    control_name="another feature, pushed as hard",
)

# %% [markdown]
# ## What causes a prediction?
#
# Which features, on which tokens, speak for the likeliest next token: as a gradient predicts it, and as ablating each
# of them measures it.

# %%
gs.attribute(model, sae, "She paid the bill with a credit", k=8)
