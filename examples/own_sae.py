# %% [markdown]
# # An SAE of one's own
#
# From text to features with labels, on a laptop, in about a minute: the bundled model reads text, an SAE is trained
# on what flows through one of its sites, measured on other text, described and labelled. It is small and trained on
# little, to be watched; [the guide](training.md) says what a good one takes.

# %%

import gemscope as gs

model = gs.load_model("smollm2")
training, other = gs.Corpus.sample().split(held_out=0.1)
print(training.name, "and", other.name)

# %% [markdown]
# ## The model reads
#
# `harvest` reads text once and stores the activations of the tokens that count. The model is not needed again until
# the SAE is measured, so many SAEs can be trained from one harvest. The site: the residual stream after block 10.

# %%
acts = gs.harvest(model, training, ["10.res"], to="acts", tokens=12_000)
unseen = gs.harvest(model, other, ["10.res"], to="unseen", tokens=2_000)
print(acts)

# %% [markdown]
# ## Training
#
# The loss pulls towards two things at once: to give back the activations, and to do it with `target_l0` active
# features on a token. The curves are those of text that the SAE is not trained on.

# %%
config = gs.TrainConfig(width=512, target_l0=40, rows=60_000, batch=256)
sae = gs.train(acts, config, to="runs/a", held_out=unseen)
gs.training_report("runs/a")

# %% [markdown]
# ## What is it worth?
#
# `score` says how much of the activations it gives back on other text, and what the model loses when it reads that in
# the place of its own. Beside it the SAE that ships with gemscope, of another site, sixteen times as wide and trained
# on a thousand times as many tokens.

# %%
score = gs.score(model, sae, other, tokens=2_000, loss_tokens=1_000)
print(score)
print()
print(gs.score(model, gs.load_sae("smollm2"), other, tokens=2_000, loss_tokens=1_000))

# %% [markdown]
# ## What do its features stand for?
#
# `describe` reads text and makes a page for every feature; `explain` learns from each one's examples what it fires
# on, as a rule in words, and tries the rule on rows that no example came from.

# %%
few = gs.DescribeConfig(effect=0)  # without what they write, which takes longer than all the rest
atlas = gs.describe(model, sae, training, to="my.atlas", tokens=12_000, config=few, map=False)
print(gs.explain(atlas))

# %%
told = [(label.confidence or 0.0, feature, label.text) for feature, label in atlas.explanations()]
told.sort(reverse=True)
for confidence, feature, text in told[:8]:
    print(f"{feature:4}  {confidence:.2f}  {text}")

# %% [markdown]
# The page of the first of them, as `gs.serve(atlas)` shows it in a browser:

# %%
atlas[told[0][1]]

# %% [markdown]
# ## Reading a text with it

# %%
gs.look(model, sae, "The council opened a new bridge over the river in 1931.", atlas=atlas, k=2)

# %% [markdown]
# ## For others
#
# The folder is SAELens's own format: `sae_lens.SAE.load_from_disk("my-sae")` reads it.

# %%
gs.save_sae(sae, "my-sae")
print(gs.load_sae("my-sae").digest == sae.digest)
