# %% [markdown]
# # From a prompt to its features
#
# The path of the Gemma Scope tutorial, on the model and the SAE that come with this package: no account, no download
# from a model hub. Put the two names of Gemma's in place of the first line's and everything below holds for Gemma 2.

# %%
import torch

import gemscope as gs

names = ["smollm2", "smollm2"]
# names = ["google/gemma-2-2b", "google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"]

# %% [markdown]
# ## The model
#
# `load_model` gives a language model as transformers loads it, unmodified, with its tokenizer. The tokenizer puts a BOS
# token in front if the model was trained with one (Gemma was, SmolLM2 was not).

# %%
model = gs.load_model(names[0])
prompt = "Would you be able to travel through time using a wormhole?"

print(model)
print(model.tokens(prompt).ids)
print("A wormhole is" + model.generate("A wormhole is", max_new_tokens=50))

# %% [markdown]
# ## The sparse autoencoder
#
# An SAE is five tensors. Its encoder writes a token's activations (`d_in` numbers) as a much longer list of features
# (`d_sae`), nearly all of them zero; its decoder adds up one direction per active feature. It knows where in the model
# it reads: its *site*. `15.res` is the residual stream after block 15, counted from 0.

# %%
sae = gs.load_sae(names[1])

print(sae)
print({name: tuple(weight.shape) for name, weight in sae.state_dict().items()})
print(sae.W_enc.norm(dim=0))

# %% [markdown]
# The arithmetic fits on a few lines: a feature counts where its pre-activation is above its threshold. Written out here
# to see that `gs.SAE` does just that. (`gs.SAE.load_state_dict` takes such a dictionary as it is.)


# %%
def by_hand(x: torch.Tensor) -> torch.Tensor:
    pre = x @ sae.W_enc + sae.b_enc
    return torch.relu(pre) * (pre > sae.threshold)


# %% [markdown]
# ## Activations
#
# `capture` reads any number of sites in one pass, stops the pass after the last of them and leaves no hook behind.

# %%
captured = model.capture(prompt, [sae.site])
acts = captured[sae.site]

print(acts.values.shape, acts.values.dtype)
print(acts.counted)

# %% [markdown]
# `counted` is False on the first token. Models park attention there, so its activations are many times larger than
# any other's, and no SAE is trained on them. Every number below leaves it out, and `look` shows it set apart.

# %%
features = sae.encode(acts)
reconstruction = sae.decode(features)

x = acts.values.float()
assert torch.allclose(features.to_dense(), by_hand(x), rtol=1e-4, atol=1e-3)

# %% [markdown]
# ## Is it right?
#
# Explained variance, as 1 − Σ‖x − x̂‖² / Σ‖x − μ‖² over the counted tokens. The Gemma Scope tutorial prints another
# formula under that name: squared error over the variance of all numbers at once, without the first token.

# %%
kept = acts.counted
error = (x[kept] - reconstruction[kept]).pow(2).sum()
spread = (x[kept] - x[kept].mean(0)).pow(2).sum()
print("explained variance", 1 - (error / spread).item())
print("by the tutorial's formula", 1 - ((reconstruction[:, 1:] - x[:, 1:]) ** 2).mean().item() / x[:, 1:].var().item())

# %% [markdown]
# L0, the number of active features per token. The first token's is nonsense, by design.

# %%
print(features.l0)
print("above 1:", (features.to_dense() > 1).sum(-1))
print("mean of the counted tokens", features.mean_l0)

# %% [markdown]
# And the strongest feature of each token:

# %%
strongest, strengths = features.top(1)
for token, feature, strength in zip(
    model.strings(acts.tokens.ids[0].tolist()), strongest[0, :, 0].tolist(), strengths[0, :, 0].tolist(), strict=True
):
    print(f"{token!r:12} {feature:6} {strength:8.1f}")

# %% [markdown]
# ## The same in one line each
#
# `look` is all of the above as a table; in a notebook it colours itself.

# %%
look = gs.look(model, sae, prompt)
look

# %% [markdown]
# `check` is the tutorial's advice ("always verify site and scale") done for you: it runs the SAE where it says it
# reads and where else it might belong, and says which fits.

# %%
print(gs.check(model, sae, gs.Corpus.sample()))

# %% [markdown]
# A wrong site does not go unnoticed:

# %%
print(gs.check(model, sae, gs.Corpus.sample(), site=sae.site.at(sae.site.layer - 2)).suggestion)

# %% [markdown]
# ## A feature's page
#
# SAEs that Neuronpedia hosts carry their id there: `look.embed(feature)` is the page in a frame, as the tutorial ends.

# %%
if look.neuronpedia_id:
    print(look.embed(look.tokens[-1].features[0].feature))

# %% [markdown]
# ## The same SAE in SAELens
#
# `save_sae` writes SAELens's own folder format: `sae_lens.SAE.load_from_disk(folder)` reads it, and `load_sae` reads
# what SAELens writes.

# %%
gs.save_sae(sae, "my-sae")
print(gs.load_sae("my-sae").digest == sae.digest)
