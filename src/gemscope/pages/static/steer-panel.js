// <steer-panel>: strengths in all their units, texts that arrive while they are written, the whole state in the address.
{
  const figure = (value) => `${value < 0 ? "−" : ""}${Number(Math.abs(value).toPrecision(3)).toLocaleString("en", { maximumSignificantDigits: 3 })}`;
  const before = ["said", "alone", "steered"];
  const named = { default: "The model alone", steered: "Steered", random: "Control: other features", noise: "Control: random directions" };
  const parts = (text) => new DOMParser().parseFromString(text, "text/html").body.childNodes; // its scripts never run

  async function* events(url, body, signal) {
    const answer = await fetch(url, { method: "POST", body, signal, headers: { accept: "text/event-stream, application/json" } });
    if (!answer.ok) throw new Error((await answer.json()).error);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let kept = ""; ; ) {
      const { value, done } = await reader.read();
      if (done) return;
      const whole = (kept + value).split("\n\n");
      kept = whole.pop();
      for (const one of whole) {
        const found = /^event: (\w+)\ndata: (.*)$/s.exec(one);
        if (found) yield [found[1], JSON.parse(found[2])];
      }
    }
  }

  class SteerPanel extends HTMLElement {
    connectedCallback() {
      this.form = this.querySelector("form");
      this.status = this.form.querySelector(":scope > .row [role=status]");
      this.bar = this.querySelector("progress");
      this.outcome = this.querySelector(".outcome");
      this.rows = this.querySelector("[data-rows]");
      this.form.addEventListener("submit", (event) => this.submitted(event));
      this.form.addEventListener("input", (event) => this.turned(event.target));
      this.addEventListener("click", (event) => this.clicked(event));
      this.form.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" || event.target.name !== "add") return;
        event.preventDefault(); // else the first button of the form is pressed
        this.form.requestSubmit(this.querySelector("[data-add]"));
      });
      const share = this.querySelector("[data-share]");
      if (share) share.hidden = false;
      this.ready();
    }

    disconnectedCallback() {
      this.stop();
    }

    // --- strengths

    ready() {
      for (const range of this.querySelectorAll(".scale, input[type=range]")) range.hidden = false;
      for (const dial of this.querySelectorAll(".dial")) this.read(dial);
    }

    turned(field) {
      const by = field.closest(".by");
      if (by) {
        const [number, range] = by.querySelectorAll("input");
        if (field === range) number.value = by.matches(".strength") ? `${range.value}norm` : range.value;
        else if (by.matches(".factor") && field.value !== "") range.value = field.value;
        this.read(field.closest(".dial"), field !== range);
      }
      if (field.name === "chat") this.arrange(field);
      if (field.name !== "add") this.address();
    }

    // A chat is read downwards: what was said stands above the field for what is said next.
    arrange(pressed) {
      const [saying, settings, row] = [".saying", ".settings", ":scope > .row"].map((part) => this.form.querySelector(part));
      if (this.chat) row.before(this.outcome, saying);
      else {
        settings.before(saying);
        this.form.after(this.outcome);
      }
      this.form.elements.prompt.placeholder = this.chat ? "What the user says" : "A text that the model goes on with";
      pressed.focus();
    }

    // A strength in all its units, as far as they are known: a number alone is raw.
    read(dial, follow = true) {
      const [, number, unit] = /^\s*(.+?)\s*(raw|max|norm)?\s*$/.exec(dial.querySelector("[name=strength]").value) ?? [];
      const max = Number(dial.dataset.max);
      const share = dial.dataset.norm ? Number(dial.dataset.norm) : NaN;
      const raw = Number(number) * (unit === "max" ? max : unit === "norm" ? max / share : 1);
      const said = [[raw, "raw"], [raw / max, "× max"], [(raw / max) * share, "× median norm"]];
      const known = said.filter(([value]) => Number.isFinite(value)).map(([value, word]) => ` = ${figure(value)} ${word}`);
      dial.querySelector(".strength output").textContent = known.join("").trim();
      const range = dial.querySelector(".strength input[type=range]");
      const norms = unit === "norm" ? Number(number) : (raw / max) * share;
      if (follow && Number.isFinite(norms)) range.value = norms;
      const breaks = Math.abs(range.value) >= range.dataset.breaks;
      range.setAttribute("aria-valuetext", `${range.value} × norm${breaks ? ", where text breaks down" : ""}`);
    }

    // --- which features

    clicked(event) {
      const { target } = event;
      if (target.closest("[data-cancel]")) this.stop("Cancelled.");
      if (target.closest("[data-share]")) this.share();
      if (target.closest("[data-over]")) {
        event.preventDefault();
        this.stop("");
        this.outcome.replaceChildren();
        this.form.elements.prompt.focus();
      }
      const gone = target.closest("[data-remove]");
      if (!gone) return;
      event.preventDefault();
      gone.closest(".dial").remove();
      const left = this.querySelectorAll(".dial").length;
      this.rows.querySelector("h2").textContent = left ? `${left} feature${left === 1 ? "" : "s"}` : "Choose a feature";
      this.address();
      this.rows.querySelector("[name=add]").focus();
    }

    async add(button) {
      const many = this.querySelectorAll(".dial").length;
      const answer = await fetch(`${this.form.action}?${this.state(button)}`, { headers: { "hx-request": "true", accept: "text/html" } });
      this.rows.replaceChildren(...parts(await answer.text()));
      this.ready();
      this.address();
      const added = this.querySelectorAll(".dial").length > many;
      const next = added ? ".dial:last-child input[type=range]:not([hidden])" : ".suggestions button, [name=add]";
      this.rows.querySelector(next)?.focus();
    }

    // --- the state

    get chat() {
      return this.form.elements.chat?.checked;
    }

    // With what was said before where a chat goes on: a link opens with what is set alone.
    state(button, said) {
      const state = new FormData(this.form, button);
      if (!said) for (const name of before) state.delete(name);
      if (this.chat) for (const name of ["n", "random", "noise"]) state.delete(name); // of texts that stand alone
      if (!["scale", "project"].includes(state.get("how"))) state.delete("factor");
      if (button?.name !== "add" && button?.dataset.add === undefined) state.delete("add");
      state.delete("run");
      return new URLSearchParams(state);
    }

    address() {
      const url = `${this.form.action}?${this.state()}`;
      if (this.dataset.address) history.replaceState(history.state, "", url);
      const open = this.querySelector("[data-open]");
      if (open) open.href = url;
    }

    async share() {
      this.address();
      try {
        await navigator.clipboard.writeText(location.href);
        this.say("The link is copied: it opens with all that is set here.");
      } catch {
        this.say("The address of this page is the link.");
      }
    }

    // --- writing

    submitted(event) {
      event.preventDefault();
      const button = event.submitter;
      if (button?.name === "add" || button?.dataset.add !== undefined) return this.add(button);
      return this.write();
    }

    say(text) {
      this.status.textContent = text;
    }

    stop(why) {
      this.running?.abort(new Error(why));
      this.running = null;
    }

    async write() {
      this.stop();
      const running = (this.running = new AbortController());
      const mine = () => this.running === running;
      const state = this.state(undefined, this.chat);
      this.address();
      this.busy(true);
      this.say("Asking the model…");
      this.rest();
      if (!this.chat) this.outcome.replaceChildren();
      this.writing = this.outcome.appendChild(document.createElement("div"));
      if (this.chat) this.writing.append(Object.assign(document.createElement("p"), { className: "said", textContent: state.get("prompt") }));
      try {
        for await (const [kind, news] of events(this.dataset.stream, state, running.signal)) {
          if (!mine()) return;
          if (kind === "wait") this.say(news.ahead ? `Waiting: ${news.ahead} before you.` : "Writing…");
          else if (kind === "frame") this.frame(news, state);
          else if (kind === "failed") throw new Error(news.error);
          else this.done(news);
        }
      } catch (error) {
        if (mine()) this.fail(error);
        else if (!this.running) this.say(running.signal.reason.message);
      } finally {
        if (mine() || !this.running) this.busy(false);
        if (mine()) this.running = null;
      }
    }

    // What a chat held before stays when a turn came to nothing.
    rest() {
      for (const one of this.outcome.querySelectorAll(":scope > .notice")) one.remove();
      if (this.chat) this.writing?.remove();
    }

    busy(on) {
      this.querySelector("[data-cancel]").hidden = !on;
      this.bar.hidden = !on;
      this.bar.value = 0;
      this.outcome.setAttribute("aria-busy", on);
    }

    frame({ run, default: alone, steered, n }, state) {
      if (this.status.textContent !== "Writing…") this.say("Writing…");
      const runs = ["steered", "random", "noise"].filter((name) => name === "steered" || state.has(name));
      this.bar.value = (runs.indexOf(run) + n / Number(state.get("tokens"))) / runs.length;
      steered.forEach((text, sample) => {
        if (run === "steered") this.text(sample, "default", steered.length).textContent = alone[sample];
        this.text(sample, run, steered.length).textContent = text;
      });
    }

    text(sample, name, samples) {
      const rows = this.writing.getElementsByClassName("texts");
      while (rows.length <= sample) {
        const made = document.createElement("div");
        made.className = "texts";
        this.writing.append(made);
      }
      const row = rows[sample];
      let cell = row.querySelector(`:scope > [data-run="${name}"]`);
      if (!cell) {
        cell = document.createElement("div");
        cell.className = "text";
        cell.dataset.run = name;
        const head = document.createElement("h3");
        head.textContent = named[name] + (samples > 1 ? ` ${sample + 1}` : "");
        const text = document.createElement("p");
        text.className = "whole";
        text.dir = "auto";
        cell.append(head, text);
        row.append(cell);
      }
      return cell.lastChild;
    }

    done({ html, runs, shares }) {
      for (const dial of this.querySelectorAll(".dial")) dial.dataset.norm = shares[dial.dataset.feature] ?? "";
      this.ready();
      this.outcome.replaceChildren(...parts(html));
      if (this.chat) {
        this.form.elements.prompt.value = "";
        this.form.elements.prompt.focus({ preventScroll: true });
      }
      const [{ default: alone, steered }] = runs[0].pairs;
      const same = runs[0].pairs.every((pair) => pair.default.text === pair.steered.text);
      this.say(same ? "Done: the edit changed no word." : `Done: ${Math.max(alone.ids.length, steered.ids.length)} tokens.`);
    }

    fail(error) {
      const notice = document.createElement("p");
      notice.className = "notice";
      notice.setAttribute("role", "alert");
      notice.textContent = error.message || "the server does not answer";
      this.rest();
      if (this.chat) this.outcome.append(notice);
      else this.outcome.replaceChildren(notice);
      this.say("");
    }
  }
  customElements.get("steer-panel") || customElements.define("steer-panel", SteerPanel);
}
