// ipywidgets gives a slider's handle no name. This names it after the label, and says its value as it is written.
// A status line is read out when it changes. Arrow keys go to the slider or menu, and not to the notebook, some of
// whose shortcuts they are. It fetches nothing.
const set = (node, key, value) => node.getAttribute(key) === value || node.setAttribute(key, value);
const name = panel => {
  for (const slider of panel.querySelectorAll('.widget-slider')) {
    const [handle, label, value] = ['[role=slider]', 'label', '.widget-readout'].map(s => slider.querySelector(s));
    if (!handle || !label || !value) continue;
    set(handle, 'aria-label', label.textContent);
    set(handle, 'aria-valuetext', value.textContent);
  }
  for (const node of panel.querySelectorAll('[role=slider], select')) set(node, 'data-lm-suppress-shortcuts', 'true');
  for (const line of panel.querySelectorAll('.rso-status .widget-html-content')) set(line, 'aria-live', 'polite');
};

export default {
  render({el}) {
    let frame;
    const observer = new MutationObserver(() => name(el.closest('.rso-panel')));
    const begin = () => {
      const panel = el.closest('.rso-panel');
      if (!panel) return frame = requestAnimationFrame(begin); // not in the page yet
      observer.observe(panel, {childList: true, subtree: true, attributes: true});
      name(panel);
    };
    begin();
    return () => {
      cancelAnimationFrame(frame);
      observer.disconnect();
    };
  },
};
