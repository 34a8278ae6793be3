// A list in another order by dragging and by arrow keys, notes saved in place, a list taken in from a file. Without this
// file the forms do the same, a page at a time.
{
  const post = async (url, said) => {
    const answer = await fetch(url, { method: "POST", headers: { "content-type": "application/json", accept: "application/json" }, body: JSON.stringify(said) });
    if (!answer.ok) throw new Error((await answer.json()).error);
    return answer.json();
  };

  for (const list of document.querySelectorAll(".kept-list")) {
    const told = document.querySelector("[data-moved]");
    const entries = () => [...list.children];
    list.classList.add("grips");

    // The buttons of an entry say where it goes: made anew when the order is another.
    const settle = () => {
      const all = entries();
      all.forEach((entry, at) => {
        const [form, label] = [entry.querySelector(".order"), entry.querySelector(".name").textContent.trim()];
        for (const [by, sign, word] of [[-1, "↑", "up"], [1, "↓", "down"]]) {
          let button = form.querySelector(`[data-by="${by}"]`);
          if (!button) {
            button = document.createElement("button");
            Object.assign(button, { className: "quiet", name: "before", textContent: sign });
            button.dataset.by = by;
            button.setAttribute("aria-label", `Move ${word}: ${label}`);
            form[by < 0 ? "prepend" : "append"](button);
          }
          button.value = all[at + (by < 0 ? -1 : 2)]?.dataset.feature ?? "";
          button.hidden = by < 0 ? at === 0 : at === all.length - 1;
        }
      });
    };

    // Put where it is shown now; where that cannot be written, back to where it was.
    const write = async (entry, back) => {
      settle();
      const at = entries().indexOf(entry);
      try {
        await post(list.dataset.move, { feature: entry.dataset.feature, before: entry.nextElementSibling?.dataset.feature ?? "" });
        told.textContent = `${entry.querySelector(".name").textContent.trim()}: place ${at + 1} of ${list.children.length}`;
      } catch (error) {
        list.insertBefore(entry, back);
        settle();
        told.textContent = "";
        alert_(error.message);
      }
    };

    const alert_ = (text) => {
      const notice = document.createElement("p");
      notice.className = "notice";
      notice.setAttribute("role", "alert");
      notice.textContent = text || "the server does not answer";
      list.before(notice);
    };

    const step = (entry, by, focus) => {
      const other = by < 0 ? entry.previousElementSibling : entry.nextElementSibling;
      if (!other) return;
      const back = entry.nextElementSibling;
      list.insertBefore(entry, by < 0 ? other : other.nextElementSibling);
      write(entry, back);
      const wanted = entry.querySelector(`[data-by="${by}"]`);
      if (focus) (wanted.hidden ? entry.querySelector(`[data-by="${-by}"]`) : wanted).focus();
    };

    list.addEventListener("click", (event) => {
      const button = event.target.closest(".order button");
      if (!button) return;
      event.preventDefault();
      step(button.closest("li"), Number(button.dataset.by), true);
    });
    list.addEventListener("keydown", (event) => {
      const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      if (by && event.target.closest(".order")) {
        event.preventDefault();
        step(event.target.closest("li"), by, true);
      }
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) event.target.closest("form.note")?.requestSubmit();
    });

    // --- dragging, by the place of the buttons
    list.addEventListener("pointerdown", (event) => {
      const grip = event.target.closest(".order");
      if (!grip || event.button) return;
      const [entry, start] = [grip.closest("li"), event.clientY];
      const back = entry.nextElementSibling;
      let moved = false;
      const drag = (move) => {
        if (!moved && Math.abs(move.clientY - start) < 6) return;
        moved = true;
        entry.classList.add("is-moved");
        const after = entries().find((one) => one !== entry && move.clientY < one.getBoundingClientRect().top + one.offsetHeight / 2);
        if (after !== entry.nextElementSibling) list.insertBefore(entry, after ?? null);
      };
      const drop = () => {
        removeEventListener("pointermove", drag);
        removeEventListener("pointerup", drop);
        removeEventListener("pointercancel", drop);
        entry.classList.remove("is-moved");
        if (!moved) return;
        addEventListener("click", (click) => (click.preventDefault(), click.stopPropagation()), { capture: true, once: true });
        setTimeout(() => dispatchEvent(new Event("click")));
        if (entry.nextElementSibling !== back) write(entry, back);
      };
      addEventListener("pointermove", drag);
      addEventListener("pointerup", drop);
      addEventListener("pointercancel", drop);
    });

    // --- notes
    list.addEventListener("submit", async (event) => {
      const form = event.target.closest("form.note");
      if (!form) return;
      event.preventDefault();
      const [said, note] = [form.querySelector(".said"), form.elements.note.value];
      said.textContent = "saving…";
      try {
        await post(list.dataset.note, { feature: form.elements.feature.value, note, was: form.elements.was.value });
        form.elements.was.value = note;
        said.textContent = "saved";
      } catch (error) {
        said.textContent = error.message || "the server does not answer";
      }
    });
    list.addEventListener("input", (event) => {
      const said = event.target.closest("form.note")?.querySelector(".said");
      if (said) said.textContent = "";
    });
    settle();
  }

  for (const form of document.querySelectorAll(".taking")) {
    const file = form.querySelector("[type=file]");
    file.closest("label").hidden = false;
    file.addEventListener("change", async () => {
      if (file.files[0]) form.elements.text.value = await file.files[0].text();
    });
  }
}
