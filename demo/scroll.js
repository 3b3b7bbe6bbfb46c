// On a phone the answer is far below the button, and grows while gradio puts its parts there.
() => {
  const outcome = document.querySelector("#outcome");
  const watcher = new ResizeObserver(() => {
    if (outcome.getBoundingClientRect().top > innerHeight / 2)
      outcome.scrollIntoView({behavior: "smooth"});
  });
  watcher.observe(outcome);
  setTimeout(() => watcher.disconnect(), 5000);
}
