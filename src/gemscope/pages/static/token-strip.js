// <token-strip>: the value of a marked token on hover and on focus. One stop for Tab in each text; arrows go from mark to mark.
{
  let tip; // one for the page: what is pointed at, or focused
  const show = (mark) => {
    if (mark.title) {
      mark.dataset.value = mark.title; // or the browser would show its own on top of ours
      mark.removeAttribute("title");
    }
    if (!tip) {
      tip = document.createElement("div");
      tip.id = "token-tip";
      tip.setAttribute("role", "tooltip");
      document.body.append(tip);
    }
    const text = mark.textContent.replace(/ /g, "·");
    const shown = document.createElement("bdi"); // or a word of Arabic would go before its figure
    shown.textContent = text.length > 40 ? text.slice(0, 40) + "…" : text;
    tip.replaceChildren(`${mark.dataset.value}  `, shown);
    tip.hidden = false;
    const at = mark.getClientRects()[0] || mark.getBoundingClientRect();
    const left = at.left + at.width / 2 - tip.offsetWidth / 2;
    tip.style.left = `${Math.max(4, Math.min(left, document.documentElement.clientWidth - tip.offsetWidth - 4))}px`;
    tip.style.top = `${at.top > tip.offsetHeight + 8 ? at.top - tip.offsetHeight - 5 : at.bottom + 5}px`;
    mark.setAttribute("aria-describedby", tip.id);
  };
  const hide = (mark) => {
    if (tip) tip.hidden = true;
    mark?.removeAttribute("aria-describedby");
  };
  const marked = (event) => event.target.closest?.("mark");
  addEventListener("scroll", () => hide(), { capture: true, passive: true });

  class TokenStrip extends HTMLElement {
    connectedCallback() {
      const first = this.querySelector("mark.p") || this.querySelector("mark");
      if (first) first.tabIndex = 0;
      this.addEventListener("pointerover", (event) => marked(event) && show(marked(event)));
      this.addEventListener("pointerout", (event) => marked(event) && hide(marked(event)));
      this.addEventListener("focusin", (event) => marked(event) && show(marked(event)));
      this.addEventListener("focusout", (event) => hide(marked(event)));
      this.addEventListener("keydown", this.step);
    }

    step(event) {
      if (event.key === "Escape") return hide(marked(event));
      const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!way || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      const shown = [...this.querySelectorAll("mark")].filter((mark) => mark.getClientRects().length);
      const turned = getComputedStyle(this).direction === "rtl" ? -way : way;
      const next = shown[shown.indexOf(marked(event)) + turned];
      if (!next) return;
      marked(event).tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    }
  }
  customElements.get("token-strip") || customElements.define("token-strip", TokenStrip);
}
