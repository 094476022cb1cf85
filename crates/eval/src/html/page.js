"use strict";
(() => {
  const form = document.querySelector("form");
  if (!form) return;
  document.documentElement.classList.add("js");
  const items = [...document.querySelectorAll(".item")].map((element) => ({
    element,
    text: element.textContent.toLowerCase(),
    answers: [...element.querySelectorAll(".answer")].map((answer) => ({
      element: answer,
      target: answer.dataset.t,
      score: "s" in answer.dataset ? Number(answer.dataset.s) : NaN,
      mistakes: (answer.dataset.m || "").split(" "),
    })),
  }));
  const sign = form.dataset.less ? -1 : 1;
  const differs = (item, how, target) => {
    const base = item.answers.find((answer) => answer.target === "0");
    return item.answers.some((answer) => {
      if (answer === base || (target && target !== "0" && answer.target !== target)) return false;
      const more = sign * (answer.score - base.score);
      // A score that is not there differs from one that is.
      const other = Number.isNaN(answer.score) !== Number.isNaN(base.score);
      return how === "any" ? other || Math.abs(more) > 1e-9 : how === "better" ? more > 1e-9 : more < -1e-9;
    });
  };
  const apply = () => {
    const get = (name) => (form.elements[name] ? form.elements[name].value : "");
    const [target, mistake, how] = [get("target"), get("mistake"), get("differ")];
    const words = get("text").toLowerCase().trim();
    const least = get("least") === "" ? -Infinity : Number(get("least"));
    const most = get("most") === "" ? Infinity : Number(get("most"));
    const bounded = least !== -Infinity || most !== Infinity;
    let shown = 0;
    for (const item of items) {
      let any = false;
      for (const answer of item.answers) {
        const fits = (!target || answer.target === target) && (!mistake || answer.mistakes.includes(mistake)) &&
          (!bounded || (answer.score >= least && answer.score <= most));
        any = any || fits;
        answer.element.hidden = Boolean(target) && answer.target !== target;
      }
      const is = any && (!words || item.text.includes(words)) && (!how || differs(item, how, target));
      item.element.hidden = !is;
      shown += is ? 1 : 0;
    }
    form.elements.count.value = `${shown} of ${items.length}`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  apply();
})();
