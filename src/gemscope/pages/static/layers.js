// The token that was chosen stays in sight: the table that shows it is a new one, which begins at its first.
{
  const place = document.getElementById("look");
  const reveal = () => {
    const box = place.querySelector(".through");
    const head = box?.querySelector("thead .chosen");
    if (head) box.scrollLeft = head.offsetLeft - (box.clientWidth - head.offsetWidth) / 2;
  };
  new MutationObserver(reveal).observe(place, { childList: true });
  reveal();
}
