// The faults in the layout of the page as it is shown, as sentences; none is an empty list.
(() => {
  const faults = [];
  const width = document.documentElement.clientWidth;
  const scrolling = (element) => {
    const scroller = element.closest(".scroll");
    return scroller !== null && getComputedStyle(scroller).overflowX === "auto";
  };
  const shown = (element) =>
    element.checkVisibility({ visibilityProperty: true, opacityProperty: true });

  if (document.documentElement.scrollWidth > width)
    faults.push(`the page is ${document.documentElement.scrollWidth} px wide, its window ${width}`);

  // What is seen: every line of every text, pictures and plots.
  const boxes = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = texts.nextNode(); node; node = texts.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || element.closest("script, #peek") || !shown(element)) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const name = JSON.stringify(node.data.trim().slice(0, 40));
    for (const box of range.getClientRects())
      if (box.width > 1 && box.height > 1) boxes.push({ box, name, element, of: node });
  }
  for (const element of document.querySelectorAll("img, svg"))
    if (!element.closest("#peek") && shown(element)) {
      const box = element.getBoundingClientRect();
      const name = element.alt || `the ${element.tagName} of ${element.closest("figure").dataset.chart}`;
      boxes.push({ box, name, element, of: element });
    }

  boxes.sort((a, b) => a.box.top - b.box.top);
  boxes.forEach((a, i) => {
    for (let k = i + 1; k < boxes.length && boxes[k].box.top < a.box.bottom; k++) {
      const b = boxes[k];
      const across = Math.min(a.box.right, b.box.right) - Math.max(a.box.left, b.box.left);
      const down = Math.min(a.box.bottom, b.box.bottom) - b.box.top;
      if (a.of !== b.of && across > 1.5 && down > 1.5) faults.push(`${a.name} covers ${b.name}`);
    }
  });

  for (const { box, name, element } of boxes) {
    if ((box.left < -0.5 || box.right > width + 0.5) && !scrolling(element))
      faults.push(`${name} reaches from ${box.left} to ${box.right} in a window of ${width} px`);
    let block = element;
    while (getComputedStyle(block).display === "inline") block = block.parentElement;
    for (let around = block; around; around = around.parentElement) {
      const clips = getComputedStyle(around).overflowX !== "visible";
      if (around !== block && !(clips && !around.matches(".scroll, html, body"))) continue;
      const edge = around.getBoundingClientRect();
      if (box.left < edge.left - 1 || box.right > edge.right + 1 || box.top < edge.top - 3 ||
          box.bottom > edge.bottom + 3)
        faults.push(`${name} is cut by its ${around.tagName}.${around.className}`);
    }
  }

  for (const image of document.querySelectorAll("img")) {
    if (image.closest("#peek") || !shown(image)) continue;
    const box = image.getBoundingClientRect();
    const stretch = (box.width / box.height) / (image.naturalWidth / image.naturalHeight);
    if (!image.complete || !(box.width > 80) || !(Math.abs(stretch - 1) < 0.02))
      faults.push(`the picture of ${image.alt} is ${box.width} by ${box.height} px`);
  }
  for (const plot of document.querySelectorAll(".plot svg")) {
    const { chart } = plot.closest("figure").dataset;
    const frame = plot.getBoundingClientRect();
    if (frame.width < 200 || frame.height < 40)
      faults.push(`the plot of ${chart} is ${frame.width} by ${frame.height} px`);
    for (const curve of plot.querySelectorAll(".driver, .result")) {
      const box = curve.getBoundingClientRect();
      if (curve.getTotalLength() && box.width < frame.width / 2)
        faults.push(`the curve of ${chart} is ${box.width} px wide`);
      if (box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
        faults.push(`the curve of ${chart} leaves its plot`);
    }
  }

  // Text that can be read: size, and contrast by WCAG 2 (section 1.4.3).
  const channels = (colour) => colour.match(/[\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => {
    const linear = [r, g, b].map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const paper = (element) => {
    for (let around = element; around; around = around.parentElement) {
      const colour = channels(getComputedStyle(around).backgroundColor);
      if (colour[3] === undefined || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const read = new Set(boxes.filter(({ of }) => of.nodeType === Node.TEXT_NODE)
    .map(({ element }) => element));
  for (const element of read) {
    const style = getComputedStyle(element);
    const name = JSON.stringify(element.textContent.trim().slice(0, 40));
    if (!matchMedia("print").matches && parseFloat(style.fontSize) < 11)
      faults.push(`${name} is written in ${style.fontSize}`);
    const [dark, light] = [luminance(channels(style.color)), luminance(paper(element))]
      .sort((a, b) => a - b);
    const contrast = (light + 0.05) / (dark + 0.05);
    if (contrast < 4.5) faults.push(`${name} has a contrast of ${contrast.toFixed(2)}`);
  }
  return faults;
})()
